"""Labels for query-document pairs from a panel of judges, and what is built on them."""
