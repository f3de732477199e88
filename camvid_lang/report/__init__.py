"""The thesis's tables and figures, and the HTML report."""
