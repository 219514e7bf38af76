"""What generate_report.py draws."""
