"""CamVid and other frames with labels: classes, files, crops, download."""
