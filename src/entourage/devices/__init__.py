"""The device classes: policy. One file per class, with both halves of it."""
