"""What dies where, and who is to have the guest afterwards."""
