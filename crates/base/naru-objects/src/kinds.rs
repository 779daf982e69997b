//! Coordinates of the kinds that the stages touch: where they live in a Kubernetes API.

/// Group, version and names of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
}

impl Kind {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The URL path of the collection (no name) or of one object.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if let (true, Some(namespace)) = (self.namespaced, namespace) {
            path.push_str("/namespaces/");
            push_segment(&mut path, namespace);
        }
        path.push('/');
        path.push_str(self.plural);
        if let Some(name) = name {
            path.push('/');
            push_segment(&mut path, name);
        }
        path
    }
}

/// One segment of a path, percent-encoded: a name may come from a command line, and must neither break
/// the URL nor lead to another object.
fn push_segment(path: &mut String, segment: &str) {
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b':' => path.push(byte as char),
            // Two dots alone would be the folder above.
            b'.' if !matches!(segment, "." | "..") => path.push('.'),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
}

const fn kind(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind { group, version, kind, plural, namespaced }
}

pub const NAMESPACE: Kind = kind("", "v1", "Namespace", "namespaces", false);
pub const NODE: Kind = kind("", "v1", "Node", "nodes", false);
pub const POD: Kind = kind("", "v1", "Pod", "pods", true);
pub const SERVICE: Kind = kind("", "v1", "Service", "services", true);
pub const CONFIG_MAP: Kind = kind("", "v1", "ConfigMap", "configmaps", true);
pub const SECRET: Kind = kind("", "v1", "Secret", "secrets", true);
pub const SERVICE_ACCOUNT: Kind = kind("", "v1", "ServiceAccount", "serviceaccounts", true);
pub const PERSISTENT_VOLUME: Kind = kind("", "v1", "PersistentVolume", "persistentvolumes", false);
pub const PERSISTENT_VOLUME_CLAIM: Kind =
    kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true);
pub const RUNTIME_CLASS: Kind = kind("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", false);
pub const EVENT: Kind = kind("", "v1", "Event", "events", true);
pub const LEASE: Kind = kind("coordination.k8s.io", "v1", "Lease", "leases", true);
pub const ENDPOINT_SLICE: Kind = kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true);
pub const DEPLOYMENT: Kind = kind("apps", "v1", "Deployment", "deployments", true);
pub const REPLICA_SET: Kind = kind("apps", "v1", "ReplicaSet", "replicasets", true);
pub const DAEMON_SET: Kind = kind("apps", "v1", "DaemonSet", "daemonsets", true);
pub const JOB: Kind = kind("batch", "v1", "Job", "jobs", true);
pub const NETWORK_POLICY: Kind = kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true);
pub const GATEWAY: Kind = kind("gateway.networking.k8s.io", "v1", "Gateway", "gateways", true);
pub const HTTP_ROUTE: Kind = kind("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes", true);
pub const CRD: Kind =
    kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", false);

pub const RUN: Kind = kind("naru.dev", "v1", "Run", "runs", true);
pub const WORKFLOW: Kind = kind("naru.dev", "v1", "Workflow", "workflows", true);
pub const ENVIRONMENT: Kind = kind("naru.dev", "v1", "Environment", "environments", true);
pub const REPOSITORY_SETTINGS: Kind =
    kind("naru.dev", "v1", "RepositorySettings", "repositorysettings", true);
pub const IMAGE: Kind = kind("naru.dev", "v1", "Image", "images", true);
pub const IMAGE_POLICY: Kind = kind("naru.dev", "v1", "ImagePolicy", "imagepolicies", false);
pub const RELEASE: Kind = kind("naru.dev", "v1", "Release", "releases", true);

/// Every kind that a release may render and a client may want to look up by its name.
pub const ALL: &[Kind] = &[
    NAMESPACE,
    NODE,
    POD,
    SERVICE,
    CONFIG_MAP,
    SECRET,
    EVENT,
    LEASE,
    ENDPOINT_SLICE,
    DEPLOYMENT,
    REPLICA_SET,
    DAEMON_SET,
    JOB,
    NETWORK_POLICY,
    PERSISTENT_VOLUME_CLAIM,
    GATEWAY,
    HTTP_ROUTE,
    CRD,
    RUN,
    WORKFLOW,
    ENVIRONMENT,
    REPOSITORY_SETTINGS,
    IMAGE,
    IMAGE_POLICY,
    RELEASE,
];

/// The kind of an object by its `apiVersion` and `kind`, if it is one that we know.
pub fn of(object: &serde_json::Value) -> Option<&'static Kind> {
    let (api_version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
    ALL.iter().find(|it| it.kind == kind && it.api_version() == api_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment() {
        let path = |name| RUN.path(Some("default"), Some(name));
        assert_eq!(path("shop-main-1"), "/apis/naru.dev/v1/namespaces/default/runs/shop-main-1");
        assert!(path("a b/../c?d").ends_with("/runs/a%20b%2F..%2Fc%3Fd"));
        assert!(path("..").ends_with("/runs/%2E%2E"));
        assert_eq!(
            CRD.path(None, Some("runs.naru.dev")),
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/runs.naru.dev"
        );
    }
}
