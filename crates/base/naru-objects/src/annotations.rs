//! Annotations by which people tell our stages what they want of an object.

/// On a `Run`: it is to end. The value says who wants it.
pub const CANCEL: &str = "naru.dev/cancel";
