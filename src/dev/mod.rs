//! Placeholder.

pub mod console;
pub mod guest_image;
pub mod guests;
