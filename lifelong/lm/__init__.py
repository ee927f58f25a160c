"""A language model as everything else sees it: packed rows, the head and its loss, checkpoints, FLOPs."""
