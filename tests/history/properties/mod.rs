//! The properties, a file each, with a good history and a bad one of each.

pub mod attachments;
pub mod backwards;
pub mod content;
pub mod deleted;
pub mod generations;
#[cfg(test)]
pub mod histories;
pub mod lists;
pub mod lost;
pub mod registers;
pub mod sightings;
pub mod sizes;
pub mod tokens;
