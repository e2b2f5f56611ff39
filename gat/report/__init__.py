"""What people look at: laws, comparisons, tables, figures, and the page."""
