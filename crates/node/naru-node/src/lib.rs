//! naru-node
