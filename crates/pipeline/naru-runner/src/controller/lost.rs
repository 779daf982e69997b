//! What becomes of a job whose pod is gone.
//!
//! If its node is lost with it, the job is given to another pod, once: nobody can say any more how it would have
//! ended there. The pod of before is fenced first. It may run on where nobody sees it, and come back: its token
//! opens nothing, its log is not read, it is given no job. A pod that is gone from a node that is there was taken
//! away by somebody, and the job is `Interrupted`: nothing runs twice that nobody asked for.
//!
//! Also here: pods that carry a run's labels and that no job of it names, because a process died in between.

use super::driver::Driver;
use super::follow::{Followed, lose, now};
use super::plans::pending;
use naru_client::Error;
use naru_objects::{JobPhase, LostPod, dns_label, kinds, label_of, labels, name_of};
use serde_json::Value;

/// So often a job is given to another pod because its node is lost. A job that takes its node down with it would
/// take down one after the other.
const LOST_NODES_MAX: usize = 1;

/// A running job whose pod is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// There is no such pod any more.
    Gone,
    /// It is asked to end. On a node that is there it will say how it ended.
    Ending,
}

impl Driver {
    /// Takes the jobs back whose nodes are lost; ends the others whose pods are gone.
    pub(super) async fn settle_missing(
        &mut self,
        missing: Vec<(String, Missing)>,
        followed: &mut Followed,
    ) -> Result<(), Error> {
        for (key, how) in missing {
            let Some(job) = self.job(&key) else { continue };
            let node = job.node.clone();
            let object = match node.is_empty() {
                true => None,
                false => self.client.get(&kinds::NODE, "", &node).await?,
            };
            let lost = lost_node(&node, object.as_ref());
            let job = self.job(&key).expect("found above");
            let again = job.stopping.is_empty() && job.lost.len() < LOST_NODES_MAX;
            match (lost, how) {
                (Some(why), _) if again => self.take_back(&key, why, followed).await?,
                (None, Missing::Ending) => {}
                (lost, _) => {
                    let why = match lost {
                        Some(why) => format!("{why}, and it was run again once already"),
                        None => "its pod is gone".to_owned(),
                    };
                    let job = self.status.jobs.iter_mut().find(|it| it.key == key).expect("found above");
                    lose(job, &why);
                }
            }
        }
        Ok(())
    }

    /// Makes a job one that has not begun. Its status is written before anything of it can begin again, so that
    /// what the pod of before holds is refused from then on.
    async fn take_back(&mut self, key: &str, why: String, followed: &mut Followed) -> Result<(), Error> {
        let mut places = self.plans.iter().flat_map(|it| it.keys.iter().zip(&it.plan.jobs));
        let planned = places.find(|(it, _)| *it == key).map(|(_, job)| job.clone());
        let (Some(planned), Some(job)) = (planned, self.status.jobs.iter_mut().find(|it| it.key == key))
        else {
            return Ok(());
        };
        let mut fresh = pending(key, &planned, &job.behind);
        fresh.lost = std::mem::take(&mut job.lost);
        fresh.lost.push(LostPod { pod: job.pod.clone(), node: job.node.clone(), at: now(), why });
        let pod = std::mem::replace(job, fresh).pod;
        self.write().await?;
        self.shared.waiting.fence(&pod);
        followed.remove(&pod);
        tracing::warn!(run = %self.run.metadata.name, job = key, pod, "the job of a lost node is run again");
        gone_is_fine(self.client.delete(&kinds::POD, &self.config.namespace, &pod, None).await)
    }

    /// Pods of before get no job from this process either.
    pub(super) fn fence_lost(&self) {
        for lost in self.status.jobs.iter().flat_map(|it| &it.lost) {
            self.shared.waiting.fence(&lost.pod);
        }
    }

    /// A pod that a process gave this job's labels, and died before it could say so in the run. It has not got
    /// its job: that comes after.
    pub(super) fn left_behind(&self, key: &str) -> Option<String> {
        let label = dns_label(key, 63);
        let mut strays = self.strays().into_iter();
        let stray = strays.find(|it| label_of(it, labels::JOB) == label && super::warm::is_warm(name_of(it)));
        stray.map(|it| name_of(&it).to_owned())
    }

    /// Removes the pods that have this run's labels and are no job's.
    pub(super) async fn remove_strays(&self) -> Result<(), Error> {
        for pod in self.strays() {
            gone_is_fine(self.client.delete(&kinds::POD, &self.config.namespace, name_of(&pod), None).await)?;
        }
        Ok(())
    }

    fn strays(&self) -> Vec<std::sync::Arc<Value>> {
        let named = |name: &str| {
            self.status.jobs.iter().any(|it| it.pod == name || it.lost.iter().any(|it| it.pod == name))
        };
        let mut pods = self.pods.list();
        pods.retain(|pod| {
            // A run of the same name may have been there before.
            pod["metadata"]["ownerReferences"][0]["uid"] == self.run.metadata.uid.as_str()
                && label_of(pod, labels::RUN) == self.run.metadata.name
                && pod["metadata"]["deletionTimestamp"].is_null()
                && !named(name_of(pod))
        });
        pods
    }

    /// Which running jobs' pods are not as they should be.
    pub(super) fn missing(&mut self) -> Vec<(String, Missing)> {
        let mut missing = Vec::new();
        for job in &mut self.status.jobs {
            if job.phase != JobPhase::Running || job.pod.is_empty() {
                continue;
            }
            match self.pods.get(&self.config.namespace, &job.pod) {
                Some(pod) => {
                    if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|it| *it != job.node) {
                        node.clone_into(&mut job.node);
                    }
                    if pod["metadata"]["deletionTimestamp"].is_string() {
                        missing.push((job.key.clone(), Missing::Ending));
                    }
                }
                None if super::follow::is_gone(job) => missing.push((job.key.clone(), Missing::Gone)),
                None => {}
            }
        }
        missing
    }
}

/// Why a node counts as lost: it is not there, or nobody has heard of it. Empty is no node at all.
fn lost_node(name: &str, node: Option<&Value>) -> Option<String> {
    if name.is_empty() {
        return None;
    }
    let Some(node) = node else { return Some(format!("the node `{name}` is gone")) };
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.and_then(|all| all.iter().find(|it| it["type"] == "Ready"))?;
    (ready["status"] != "True").then(|| format!("the node `{name}` is not ready"))
}

fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_lost_when_it_is_gone_or_silent() {
        let node = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        let lost = |node: Option<Value>| lost_node("n", node.as_ref());
        assert_eq!(lost(None).as_deref(), Some("the node `n` is gone"));
        assert_eq!(lost(Some(node("Unknown"))).as_deref(), Some("the node `n` is not ready"));
        assert!(lost(Some(node("False"))).is_some());
        assert_eq!(lost(Some(node("True"))), None);
        assert_eq!(lost(Some(json!({}))), None, "it has only just registered");
        assert_eq!(lost_node("", None), None, "it was never on one");
    }
}
