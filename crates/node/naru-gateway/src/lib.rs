//! naru-gateway
