"""The aggregation, pure: sums that take updates in any order and grouping, without Flower."""
