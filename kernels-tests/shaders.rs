//! All WGSL, without a GPU: it parses, it validates, it agrees with the host, and every backend's
//! compiler front end takes it.

use std::collections::BTreeSet;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use semask_gpu::gpu::{Dialect, Kernel};

/// Every kernel in each of its variants.
fn variants() -> impl Iterator<Item = (&'static Kernel, Dialect)> {
    semask_gpu::ops::kernels().flat_map(|k| k.dialects().into_iter().map(move |d| (k, d)))
}

#[test]
fn every_kernel_is_valid_and_uses_exactly_what_the_host_binds() {
    for (kernel, dialect) in variants() {
        let (module, info) = compile(kernel, dialect);
        let entry = entry_point(&module, kernel);
        // wgpu drops unused bindings, so the host would bind what is not there.
        let used: BTreeSet<&str> = (module.global_variables.iter())
            .filter(|(handle, _)| !info.get_entry_point(entry)[*handle].is_empty())
            .filter(|(_, var)| var.binding.is_some() || var.space == naga::AddressSpace::Immediate)
            .map(|(_, var)| var.name.as_deref().unwrap())
            .collect();
        let passed: BTreeSet<&str> =
            kernel.bindings.iter().copied().chain(std::iter::once("params")).collect();
        assert_eq!(used, passed, "{}", kernel.label());

        let bindings = kernel.declarations();
        let unique: BTreeSet<_> = bindings.iter().map(|binding| binding.number).collect();
        assert_eq!(unique.len(), bindings.len(), "{}: a binding number twice", kernel.label());
    }
}

/// Limits that every WebGPU device has, so that an application need not ask for more.
#[test]
fn every_kernel_fits_the_default_limits() {
    let limits = wgpu::Limits::default();
    for (kernel, dialect) in variants() {
        let (module, info) = compile(kernel, dialect);
        let entry = entry_point(&module, kernel);
        let used = |space: fn(naga::AddressSpace) -> bool| {
            let info = info.get_entry_point(entry);
            let globals = module.global_variables.iter();
            globals.filter(move |(h, v)| space(v.space) && !info[*h].is_empty())
        };
        let buffers = used(|s| matches!(s, naga::AddressSpace::Storage { .. })).count() as u32;
        assert!(buffers <= limits.max_storage_buffers_per_shader_stage, "{}", kernel.label());

        let shared: u32 = used(|s| s == naga::AddressSpace::WorkGroup)
            .map(|(_, var)| module.types[var.ty].inner.size(module.to_ctx()))
            .sum();
        assert!(shared <= limits.max_compute_workgroup_storage_size, "{}", kernel.label());

        let invocations: u32 = module.entry_points[entry].workgroup_size.iter().product();
        assert!(invocations <= limits.max_compute_invocations_per_workgroup, "{}", kernel.label());
    }
}

#[test]
fn host_params_match_wgsl() {
    for (kernel, dialect) in variants() {
        let (module, _) = compile(kernel, dialect);
        let params = module.types.iter().find(|(_, t)| t.name.as_deref() == Some("Params"));
        let Some((_, naga::Type { inner: naga::TypeInner::Struct { members, .. }, .. })) = params
        else {
            panic!("{}: no struct Params", kernel.label())
        };
        let members = members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize));
        assert_eq!(members.collect::<Vec<_>>(), kernel.params, "{}", kernel.label());
    }
}

#[test]
fn every_file_under_shaders_is_used() {
    let used: BTreeSet<_> = semask_gpu::ops::kernels().map(|k| k.file).collect();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "wgsl") {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            assert!(used.contains(stem), "{stem}.wgsl is not in ops::kernels()");
        }
    }
}

#[test]
fn every_kernel_translates_for_vulkan_metal_and_dx12() {
    for (kernel, dialect) in variants() {
        let (module, info) = compile(kernel, dialect);
        let overrides = naga::back::PipelineConstants::default();
        let entry = Some((naga::ShaderStage::Compute, kernel.entry));
        let (module, info) =
            naga::back::pipeline_constants::process_overrides(&module, &info, entry, &overrides)
                .unwrap_or_else(|e| panic!("{}: {e}", kernel.label()));

        let spv = naga::back::spv::Options {
            // Subgroup operations came with SPIR-V 1.3.
            lang_version: (1, 3),
            ..Default::default()
        };
        let pipeline = naga::back::spv::PipelineOptions {
            shader_stage: naga::ShaderStage::Compute,
            entry_point: kernel.entry.into(),
        };
        naga::back::spv::write_vec(&module, &info, &spv, Some(&pipeline))
            .unwrap_or_else(|e| panic!("{}: SPIR-V: {e}", kernel.label()));

        let msl = naga::back::msl::Options {
            lang_version: (2, 4),
            fake_missing_bindings: true,
            ..Default::default()
        };
        naga::back::msl::write_string(&module, &info, &msl, &Default::default())
            .unwrap_or_else(|e| panic!("{}: MSL: {e}", kernel.label()));

        // DX12 has no cooperative matrices.
        if kernel.matrices {
            continue;
        }
        let hlsl = naga::back::hlsl::Options {
            // 6.2 brought numbers of 16 bits.
            shader_model: naga::back::hlsl::ShaderModel::V6_2,
            fake_missing_bindings: true,
            immediates_target: Some(Default::default()),
            ..Default::default()
        };
        let mut text = String::new();
        let pipeline = Default::default();
        naga::back::hlsl::Writer::new(&mut text, &hlsl, &pipeline)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{}: HLSL: {e}", kernel.label()));
    }
}

fn entry_point(module: &naga::Module, kernel: &Kernel) -> usize {
    let found = module.entry_points.iter().position(|e| e.name == kernel.entry);
    found.unwrap_or_else(|| panic!("{}: no such entry point", kernel.label()))
}

fn compile(kernel: &Kernel, dialect: Dialect) -> (naga::Module, ModuleInfo) {
    let file = format!("shaders/{}.wgsl", kernel.file);
    let wgsl = kernel.wgsl(dialect);
    let mut needs = Capabilities::empty();
    needs.set(Capabilities::SUBGROUP, dialect.subgroup || kernel.lanes);
    needs.set(Capabilities::SHADER_INT64, kernel.lanes);
    needs.set(Capabilities::SHADER_FLOAT16, dialect.half);
    needs.set(Capabilities::IMMEDIATES, dialect.immediates);
    needs.set(Capabilities::COOPERATIVE_MATRIX, kernel.matrices);
    let mut frontend = naga::front::wgsl::Frontend::new();
    let module = frontend
        .parse(&wgsl)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(&wgsl, &file)));
    let info = Validator::new(ValidationFlags::all(), needs)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(&wgsl, &file)));
    (module, info)
}
