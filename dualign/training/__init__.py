"""What SFT and preference training share around TRL's trainers."""
