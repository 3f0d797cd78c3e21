"""The demo data: 1,811 emoji as five vendors draw them, with their names and keywords in six languages."""
