//! The properties, a file each, with a good history and a bad one of each.

pub mod attachments;
pub mod backwards;
pub mod content;
pub mod deleted;
pub mod generations;
#[cfg(test)]
pub mod histories;
pub mod lost;
pub mod sightings;
pub mod tokens;
