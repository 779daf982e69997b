//! naru-client
