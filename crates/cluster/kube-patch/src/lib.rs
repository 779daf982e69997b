//! kube-patch
