"""Who may ask for what, and how often: keys, the gate, quotas, HTTPS, and what browsers are told (docs/security.md)."""
