//! kube-api
