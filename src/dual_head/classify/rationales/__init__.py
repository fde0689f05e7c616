"""Rationales: written by a teacher, and looked over before they are trained on."""
