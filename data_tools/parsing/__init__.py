"""What several readers share: tables, databases, RDKit molecules from text and from positions."""
