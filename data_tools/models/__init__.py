"""What the launch scripts do with a trained model and files of molecules."""
