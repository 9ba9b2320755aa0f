"""What a host must still know after a crash: decisions, the ledger of resources, domain locks."""
