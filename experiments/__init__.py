"""What happens if ...? Commands that leave tables, figures and a manifest behind."""
