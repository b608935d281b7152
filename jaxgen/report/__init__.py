"""Report pages, pictures and the comparison of receipts."""
