"""From a query to a forecast with its intervals; what is remembered, learnt and noticed on the way."""
