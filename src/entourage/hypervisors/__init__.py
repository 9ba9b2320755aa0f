"""The hypervisors: mechanism. What to do with it is the controllers' business."""
