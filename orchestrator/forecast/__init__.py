"""Forecasts: what a sweep will cost before it runs, and when a running one will be done."""
