"""What data are like: every sample verified, statistics, speed."""
