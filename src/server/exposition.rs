//! Writes metrics whose values are looked up when they are asked for, under one name or under two.

use crate::{
    chat::{Histogram, ModelState, Models, ServedModel},
    engine::{Load, Stats},
};
use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use std::{fmt, sync::Arc};

/// A scrape under way.
pub(super) struct Exposition<'a> {
    encoder: DescriptorEncoder<'a>,
    models: Models,
    /// What each engine has done and has to do, with the name of its model and its own number: looked up once, so that all
    /// of it is of one moment.
    engines: Vec<(String, String, (Stats, Load))>,
    with_vllm: bool,
}

/// What vLLM calls the label of an engine.
const ENGINE: &str = "engine";

impl<'a> Exposition<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>, models: Models, with_vllm: bool) -> Self {
        let of_model = |model: &Arc<ServedModel>| {
            let name = model.name().to_owned();
            let stats = model.engine_stats().into_iter().enumerate();
            stats.map(move |(index, stats)| (name.clone(), index.to_string(), stats)).collect::<Vec<_>>()
        };
        let engines = models.iter().flat_map(of_model).collect();
        Self { encoder, models, engines, with_vllm }
    }

    /// The name of each family with that of its label for the model.
    fn names<'n>(
        &self,
        native: &'n str,
        vllm: Option<&'n str>,
    ) -> impl Iterator<Item = (&'n str, &'static str)> + use<'n> {
        let vllm = vllm.filter(|_| self.with_vllm).map(|name| (name, "model_name"));
        [(native, "model")].into_iter().chain(vllm)
    }

    /// One for each model.
    pub(super) fn gauges(&mut self, name: &str, help: &str, value: impl Fn(&ServedModel) -> f64) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (model, value) in look_up(&self.models, value) {
            family.encode_family(&[("model", model)])?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// One for each engine of each model that is loaded.
    pub(super) fn engine_gauges(
        &mut self,
        (native, vllm): (&str, Option<&str>),
        help: &str,
        value: impl Fn(&Load) -> f64,
    ) -> fmt::Result {
        for (name, label) in self.names(native, vllm) {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (model, engine, (_, load)) in &self.engines {
                let labels = [(label, model.as_str()), (ENGINE, engine.as_str())];
                family.encode_family(&labels)?.encode_gauge(&value(load))?;
            }
        }
        Ok(())
    }

    /// The same of what only grows.
    pub(super) fn engine_counters(
        &mut self,
        (native, vllm): (&str, Option<&str>),
        help: &str,
        value: impl Fn(&Stats) -> f64,
    ) -> fmt::Result {
        for (name, label) in self.names(native, vllm) {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (model, engine, (stats, _)) in &self.engines {
                let labels = [(label, model.as_str()), (ENGINE, engine.as_str())];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, f64, f64>(&value(stats), None)?;
            }
        }
        Ok(())
    }

    pub(super) fn histograms(
        &mut self,
        native: &str,
        vllm: &str,
        help: &str,
        pick: impl Fn(&ServedModel) -> &Histogram,
    ) -> fmt::Result {
        let values = look_up(&self.models, |model| pick(model).read());
        for (name, label) in self.names(native, Some(vllm)) {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (model, counts) in &values {
                let labels = [(label, *model)];
                let mut encoder = family.encode_family(&labels)?;
                encoder.encode_histogram::<NoLabelSet>(counts.sum, counts.count(), &counts.buckets, None)?;
            }
        }
        Ok(())
    }

    /// How many replies of each model ended in which way.
    pub(super) fn ends(&mut self, native: &str, vllm: &str, help: &str) -> fmt::Result {
        let values = look_up(&self.models, |model| model.request_stats().ends());
        for (name, label) in self.names(native, Some(vllm)) {
            let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            let reason = if label == "model" { "finish_reason" } else { "finished_reason" };
            for (model, ends) in &values {
                for (end, count) in ends {
                    let labels = [(label, *model), (reason, *end)];
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(count, None)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn states(&mut self, name: &str, help: &str, states: &[ModelState]) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for model in self.models.iter() {
            let (current, _) = model.state();
            for state in states {
                let labels = [("model", model.name()), ("state", state.name())];
                family.encode_family(&labels)?.encode_gauge(&i64::from(*state == current))?;
            }
        }
        Ok(())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn gauge_with(&mut self, name: &str, help: &str, labels: &[(&str, &str); 1], value: f64) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        family.encode_family(labels)?.encode_gauge(&value)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, f64, f64>(&value, None)
    }
}

/// What each model has, with its name: looked up once, so that two names tell the same.
fn look_up<T>(models: &Models, value: impl Fn(&ServedModel) -> T) -> Vec<(&str, T)> {
    models.iter().map(|model| (model.name(), value(model))).collect()
}
