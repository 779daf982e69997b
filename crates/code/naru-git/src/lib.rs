//! naru-git
