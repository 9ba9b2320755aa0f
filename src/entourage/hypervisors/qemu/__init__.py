"""QEMU without a manager in between: Entourage starts it, drives it by QMP and moves it."""
