"""Who may run the domain: values, the rules as pure functions, and what executes their effects."""
