"""Loads this folder with trust_remote_code=True. It needs the library: pip install dual-head."""
from dual_head.config import AlignedConfig
from dual_head.model import AlignedModel
