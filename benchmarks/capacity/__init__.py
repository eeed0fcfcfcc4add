"""What a forecast costs, and what that comes to on one machine or a thousand replicas."""
