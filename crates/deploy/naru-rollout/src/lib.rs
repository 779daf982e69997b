//! naru-rollout
