"""What a launch compiles to, on any chip, without having one."""
