"""EMA teachers: copies of networks that follow them as exponential moving averages."""

from sslfast.ema.schedules import CosineMomentum, PowerMomentum, WarmupMomentum
from sslfast.ema.teacher import EMATeacher

__all__ = ["CosineMomentum", "EMATeacher", "PowerMomentum", "WarmupMomentum"]
