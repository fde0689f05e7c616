"""The report of an evaluation: its values as tables, and one page that shows them."""
