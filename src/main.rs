//! The `vbs` program.

fn main() {}
