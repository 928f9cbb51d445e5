//! The names of published files, and what this crate's models call the same arrays.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::Error;

use super::{Checkpoint, Entry};

/// The arrays of a checkpoint under the names that the models have for them.
#[derive(Debug)]
pub struct Official<'a> {
    /// The arrays by name, the optimiser's left out.
    pub entries: BTreeMap<Cow<'a, str>, &'a Entry>,
    /// Whether these are an encoder's alone, as classifiers of ImageNet leave them.
    pub encoder_alone: bool,
    /// Names that two arrays have.
    pub(crate) twice: Vec<String>,
}

impl Checkpoint {
    /// Translates the names of the published files:
    ///
    /// - `module.`, from training on several GPUs, goes;
    /// - encoders pretrained on ImageNet (Swin, Mix Transformer) lack `backbone.` before their names;
    ///   those of self-supervised training have `encoder.` there, and other things beside it;
    /// - early files of detectron2 lack `pixel_decoder.` in `sem_seg_head.pixel_decoder.…`, and say
    ///   `static_query` for `query_feat`.
    ///
    /// Files that have the right names are left as they are.
    pub fn official(&self) -> Official<'_> {
        fn bare(name: &str) -> &str {
            name.strip_prefix("module.").unwrap_or(name)
        }
        let names = || self.parameters().map(|(name, _)| bare(name));
        let self_supervised = names().min().is_some_and(|name| name.starts_with("encoder."));
        let inner = |name| match self_supervised {
            true => str::strip_prefix(name, "encoder."),
            false => Some(name),
        };
        let of_encoder = |name: &str| name.starts_with("patch_embed");
        let encoder_alone = !names().any(|name| name.starts_with("backbone."))
            && names().filter_map(inner).any(of_encoder);

        let mut official = Official { entries: BTreeMap::new(), encoder_alone, twice: Vec::new() };
        for (name, entry) in self.parameters() {
            let Some(name) = inner(bare(name)) else { continue };
            let name = if encoder_alone {
                Cow::Owned(format!("backbone.{name}"))
            } else {
                detectron2(name)
            };
            if official.entries.insert(name.clone(), entry).is_some() {
                official.twice.push(name.into_owned());
            }
        }
        official
    }
}

/// Today's name of what the first version of detectron2's heads called `name`.
fn detectron2(name: &str) -> Cow<'_, str> {
    let Some(rest) = name.strip_prefix("sem_seg_head.") else { return name.into() };
    if rest.starts_with("predictor.static_query.") {
        return name.replacen("static_query", "query_feat", 1).into();
    }
    if rest.starts_with("pixel_decoder.") || rest.starts_with("predictor.") {
        return name.into();
    }
    format!("sem_seg_head.pixel_decoder.{rest}").into()
}

/// What is wrong with a file of an encoder where a whole model is wanted.
pub(crate) fn encoder_alone(path: &Path) -> Error {
    let reason = "holds an encoder alone, such as those pretrained on ImageNet: training can start \
                  from it (train --init), but it has no head";
    Error::invalid_file(path, reason)
}

/// Whether published files have an array of this name that no model needs: it follows from the
/// configuration, or belongs to the classifier that the encoder was pretrained for.
pub(crate) fn is_needless(name: &str) -> bool {
    const DERIVED: &[&str] =
        &["relative_position_index", "attn_mask", "num_batches_tracked", "criterion.empty_weight"];
    const CLASSIFIER: &[&str] = &["backbone.head.", "backbone.norm.", "backbone.fc."];
    DERIVED.iter().any(|end| name.ends_with(end))
        || CLASSIFIER.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(names: &[&str]) -> (Vec<String>, bool) {
        let mut checkpoint = Checkpoint::default();
        for name in names {
            checkpoint.insert(*name, Entry::from_f32([1], &[0.0]));
        }
        let official = checkpoint.official();
        assert!(official.twice.is_empty());
        (official.entries.into_keys().map(Cow::into_owned).collect(), official.encoder_alone)
    }

    #[test]
    fn published_names_become_the_models() {
        for (names, wanted, encoder_alone) in [
            (
                &["module.backbone.a", "module.decode_head.b"][..],
                &["backbone.a", "decode_head.b"][..],
                false,
            ),
            (&["backbone.patch_embed.proj.weight"], &["backbone.patch_embed.proj.weight"], false),
            (
                &["layers.0.x", "norm.weight", "patch_embed.norm.bias"],
                &["backbone.layers.0.x", "backbone.norm.weight", "backbone.patch_embed.norm.bias"],
                true,
            ),
            (
                &["block1.0.attn.q.bias", "patch_embed1.proj.weight"],
                &["backbone.block1.0.attn.q.bias", "backbone.patch_embed1.proj.weight"],
                true,
            ),
            (
                &["encoder.layers.0.x", "encoder.patch_embed.proj.bias", "projector.0.bias"],
                &["backbone.layers.0.x", "backbone.patch_embed.proj.bias"],
                true,
            ),
            (
                &[
                    "backbone.norm0.bias",
                    "optimizer.m.backbone.norm0.bias",
                    "sem_seg_head.adapter_1.weight",
                    "sem_seg_head.pixel_decoder.layer_1.weight",
                    "sem_seg_head.predictor.static_query.weight",
                ],
                &[
                    "backbone.norm0.bias",
                    "sem_seg_head.pixel_decoder.adapter_1.weight",
                    "sem_seg_head.pixel_decoder.layer_1.weight",
                    "sem_seg_head.predictor.query_feat.weight",
                ],
                false,
            ),
        ] {
            let (found, alone) = translated(names);
            assert_eq!(found, wanted, "{names:?}");
            assert_eq!(alone, encoder_alone, "{names:?}");
        }
    }

    #[test]
    fn two_arrays_of_one_name_are_noticed() {
        let mut checkpoint = Checkpoint::default();
        for name in ["backbone.a", "module.backbone.a"] {
            checkpoint.insert(name, Entry::from_f32([1], &[0.0]));
        }
        assert_eq!(checkpoint.official().twice, ["backbone.a"]);
    }
}
