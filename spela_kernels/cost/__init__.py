"""What launches cost: bytes, flops and a predicted time, beside the published step."""

__all__ = []
