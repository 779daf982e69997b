//! kube-kinds
