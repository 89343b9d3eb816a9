"""Transfer learning by measurement: keep the trunk of a pretrained network, work on the top."""
