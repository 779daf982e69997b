//! Jobs that are known only on the way: those behind a call, and those of a matrix that other jobs' outputs make.

use super::driver::{Acted, Driver};
use super::follow::now;
use super::plans::{pending, unique_keys};
use naru_objects::{JobPhase, JobStatus, dns_label};
use naru_plan::{EvaluateError, JOBS_MAX, JobState};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

impl Driver {
    /// The jobs behind a call or behind a job whose matrix was not known.
    pub(super) fn expand(&mut self, at: usize, index: usize) -> Result<(), EvaluateError> {
        let planned = &self.plans[at];
        let views = self.views(planned);
        let job = planned.plan.jobs[index].clone();
        let contexts = Value::Object(self.contexts_of(planned, &job, &views));
        let jobs = planned.dialect.evaluator.expand(&job, &contexts)?;
        if self.status.jobs.len() + jobs.len() > JOBS_MAX {
            let message = format!("with its {} jobs the run would have more than {JOBS_MAX}", jobs.len());
            return Err(EvaluateError { message, offset: 0 });
        }
        let own = planned.keys[index].clone();
        let mut taken: BTreeSet<String> = self.status.jobs.iter().map(|it| dns_label(&it.key, 63)).collect();
        let is_call = job.call.is_some() && job.deferred.is_none();
        if !is_call {
            taken.remove(&dns_label(&own, 63));
        }
        let keys = unique_keys(&planned.prefix, &jobs, &mut taken);
        let statuses: Vec<JobStatus> =
            keys.iter().zip(&jobs).map(|(key, job)| pending(key, job, &own)).collect();
        let place = self.status.jobs.iter().position(|it| it.key == own);
        let planned = &mut self.plans[at];
        if is_call {
            if let Some(call) = &mut planned.plan.jobs[index].call {
                call.expanded = true;
            }
            planned.plan.jobs.splice(index + 1..index + 1, jobs);
            planned.keys.splice(index + 1..index + 1, keys);
            if let Some(place) = place {
                let call = &mut self.status.jobs[place];
                call.phase = JobPhase::Running;
                call.started_at = now();
                self.status.jobs.splice(place + 1..place + 1, statuses);
            }
        } else {
            planned.plan.jobs.splice(index..=index, jobs);
            planned.keys.splice(index..=index, keys);
            if let Some(place) = place {
                self.status.jobs.splice(place..=place, statuses);
            }
        }
        Ok(())
    }

    /// Ends a call whose jobs have ended, with its outputs.
    pub(super) fn finish(&mut self, at: usize, index: usize, state: JobState) -> Acted {
        let planned = &self.plans[at];
        let views = self.views(planned);
        let job = &planned.plan.jobs[index];
        let mut contexts = self.contexts_of(planned, job, &views);
        let inner = planned.plan.jobs.iter().filter(|it| it.scope == job.key);
        let ids: BTreeSet<&str> = inner.clone().map(|it| it.id.as_str()).collect();
        let jobs: Map<String, Value> = ids
            .into_iter()
            .map(|id| {
                let all = &planned.plan.jobs;
                let result = naru_plan::result_of(&job.key, id, all, &views);
                let outputs = naru_plan::outputs_of(&job.key, id, all, &views);
                (id.to_owned(), json!({"result": result, "outputs": outputs}))
            })
            .collect();
        contexts.insert("jobs".into(), Value::Object(jobs));
        if let Some(first) = inner.clone().next() {
            contexts.insert("inputs".into(), json!(first.inputs));
        }
        let contexts = Value::Object(contexts);
        let mut outputs = BTreeMap::new();
        let mut broken = None;
        for (name, text) in job.call.iter().flat_map(|it| &it.outputs) {
            match planned.dialect.evaluator.text(text, &contexts) {
                Ok(value) => {
                    outputs.insert(name.clone(), value);
                }
                Err(error) => broken = Some(format!("the output `{name}`: {error}")),
            }
        }
        let phase = match state {
            _ if broken.is_some() => JobPhase::Failed,
            JobState::Failed => JobPhase::Failed,
            JobState::Cancelled => JobPhase::Cancelled,
            JobState::Skipped => JobPhase::Skipped,
            _ => JobPhase::Succeeded,
        };
        self.job_mut(at, index).outputs = outputs;
        self.close(at, index, phase, &broken.unwrap_or_default());
        Acted::Moved
    }
}
