//! naru-objects
