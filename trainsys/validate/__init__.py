"""The performance model against measurements that others published."""
