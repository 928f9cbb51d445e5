//! Pipelines of a plan, from the loaded Vulkan driver.

use std::ffi::{CStr, CString};

use ash::{khr, vk};
use naga::back::spv;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use semask_gpu::gpu::{Access, Dialect, Family, Profile, Program, Tuning, Variant};
use semask_gpu::model::{Model, ModelConfig};
use semask_gpu::train::recipe::Recipe;
use semask_gpu::train::step::Step;

use crate::{Report, Reports, assembly};

/// All pipelines of SeMask-T at 512², batch 2, on a GPU like the driver's; with small tiles, too; in mixed precision, too, if it has 16-bit
/// numbers, and there with the matrix units of AMD's.
fn programs(driver: &str, half: bool) -> Vec<Program> {
    // Only Apple's have subgroups of one size.
    let subgroup_size = (driver == "honeykrisp").then_some(32);
    let profile = Profile { subgroup_size, half, max_immediates: 128, ..Profile::default() };
    let recipe = |sets: &[&str]| {
        let mut recipe = Recipe::preset_with("semask-t", sets).expect("it comes with the program");
        recipe.set_num_classes(ModelConfig::default().num_classes).expect("150 is fine");
        recipe
    };
    let [full, mixed] = [recipe(&[]), recipe(&["train.precision=mixed"])];
    let model = Model::new(&full.model).expect("the preset is consistent");
    let training = |recipe: &Recipe, profile: &Profile| {
        let step = Step::training(recipe, &model, profile, 2, [512, 512]);
        step.expect("it is wired").recorder.programs()
    };
    let mut programs = training(&full, &profile);
    programs.extend(Step::inference(&model, &profile, [512, 512]).recorder.programs());
    if half {
        programs.extend(training(&mixed, &profile));
    }
    let small = Tuning::default().with(Family::Product, Variant::SmallTiles);
    let small = Profile { tuning: small.into(), ..profile.clone() };
    programs.extend(training(&full, &small));
    if half && driver == "radv" {
        // wgpu does not tell which of two sizes a subgroup has; the compiler takes this one.
        let tuning = Tuning::default().with(Family::HalfProduct, Variant::Matrices);
        let (subgroup_size, matrix, tuning) = (Some(64), Some(16), tuning.into());
        let units = Profile { subgroup_size, matrix, tuning, ..profile };
        programs.extend(training(&mixed, &units).into_iter().filter(|p| p.kernel.matrices));
    }
    let mut all: Vec<Program> = Vec::new();
    for program in programs {
        if !all.contains(&program) {
            all.push(program);
        }
    }
    all
}

fn name(program: &Program) -> String {
    let mut name = program.kernel.label();
    for (constant, value) in &program.constants {
        name += &format!(" {constant}={value}");
    }
    let Dialect { subgroup, half, .. } = program.dialect;
    for (yes, what) in [(subgroup, " subgroup"), (half, " half")] {
        name += if yes { what } else { "" };
    }
    name
}

/// As wgpu makes it for kernels that are not checked; and the invocations of a workgroup.
fn spirv(program: &Program) -> (Vec<u32>, u32) {
    let kernel = program.kernel;
    let wgsl = kernel.wgsl(program.dialect);
    let module = naga::front::wgsl::parse_str(&wgsl).expect("the shader tests parse it");
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).expect("the shader tests validate it");
    let constants: naga::back::PipelineConstants =
        program.constants.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let entry = Some((naga::ShaderStage::Compute, kernel.entry));
    let (module, info) =
        naga::back::pipeline_constants::process_overrides(&module, &info, entry, &constants)
            .expect("the host sets what there is");
    let unchecked = naga::proc::BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ..Default::default()
    };
    let pipeline = spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: kernel.entry.into(),
    };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline));
    let entry =
        module.entry_points.iter().find(|e| e.name == kernel.entry).expect("it was written");
    (words.expect("the shader tests write it"), entry.workgroup_size.iter().product())
}

/// What the loaded driver says of all pipelines.
pub(crate) fn all(driver: &str) -> Reports {
    // SAFETY: Vulkan called as its specification wants: objects are made and used in order, by one thread,
    // and live until the process ends.
    #[allow(unsafe_code, reason = "wgpu does not tell what became of a pipeline")]
    unsafe {
        let entry = ash::Entry::load().expect("tools/vulkan brings a loader");
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
        let create = vk::InstanceCreateInfo::default().application_info(&application);
        let instance = entry.create_instance(&create, None).expect("an instance");
        let physical = instance.enumerate_physical_devices().expect("devices")[0];
        let priorities = [1.0];
        let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&priorities)];
        let (mut storage, mut numbers) = Default::default();
        let mut features = vk::PhysicalDeviceFeatures2::default()
            .push_next::<vk::PhysicalDeviceVulkan11Features<'_>>(&mut storage)
            .push_next::<vk::PhysicalDeviceVulkan12Features<'_>>(&mut numbers);
        instance.get_physical_device_features2(physical, &mut features);
        // What wgpu asks for.
        let half = [
            numbers.shader_float16,
            storage.storage_buffer16_bit_access,
            storage.uniform_and_storage_buffer16_bit_access,
        ];
        let half = half == [vk::TRUE; 3];
        let programs = programs(driver, half);

        let mut extensions = vec![khr::pipeline_executable_properties::NAME.as_ptr()];
        let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
        if programs.iter().any(|program| program.kernel.matrices) {
            extensions.push(khr::cooperative_matrix::NAME.as_ptr());
            matrices = matrices.cooperative_matrix(true);
        }
        let mut storage = vk::PhysicalDeviceVulkan11Features::default()
            .storage_buffer16_bit_access(half)
            .uniform_and_storage_buffer16_bit_access(half);
        let units = matrices.cooperative_matrix == vk::TRUE;
        let mut numbers = vk::PhysicalDeviceVulkan12Features::default()
            .shader_float16(half)
            .vulkan_memory_model(units)
            .vulkan_memory_model_device_scope(units);
        let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
            .pipeline_executable_info(true);
        let create = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&extensions)
            .push_next(&mut storage)
            .push_next(&mut numbers)
            .push_next(&mut executable);
        let create = if units { create.push_next(&mut matrices) } else { create };
        let device = instance.create_device(physical, &create, None).expect("a device");
        let executables = khr::pipeline_executable_properties::Device::new(&instance, &device);

        let compile = |program: &Program| {
            let (spirv, invocations) = spirv(program);
            let create = vk::ShaderModuleCreateInfo::default().code(&spirv);
            let module = device.create_shader_module(&create, None).expect("a module");
            assert!(program.dialect.immediates, "all `Params` are small");
            let bindings: Vec<_> = (program.kernel.declarations().iter())
                .filter(|binding| binding.access != Access::Uniform)
                .map(|binding| {
                    vk::DescriptorSetLayoutBinding::default()
                        .binding(binding.number)
                        .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                        .descriptor_count(1)
                        .stage_flags(vk::ShaderStageFlags::COMPUTE)
                })
                .collect();
            let create = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [device.create_descriptor_set_layout(&create, None).expect("a set")];
            let immediates = [vk::PushConstantRange::default()
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
                .size(128)];
            let create = vk::PipelineLayoutCreateInfo::default()
                .set_layouts(&sets)
                .push_constant_ranges(&immediates);
            let layout = device.create_pipeline_layout(&create, None).expect("a layout");
            let entry = CString::new(program.kernel.entry).expect("names have no zero");
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            let create =
                vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(
                    vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                        | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
                );
            let pipelines =
                device.create_compute_pipelines(vk::PipelineCache::null(), &[create], None);
            let pipeline = pipelines.expect("a pipeline")[0];

            let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
            let mut report = Report::default();
            let statistics = executables.get_pipeline_executable_statistics(&info);
            for statistic in statistics.expect("statistics") {
                let value = statistic.value;
                let value = match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::BOOL32 => f64::from(value.b32),
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => value.i64 as f64,
                    vk::PipelineExecutableStatisticFormatKHR::UINT64 => value.u64 as f64,
                    _ => value.f64,
                };
                let name = CStr::from_ptr(statistic.name.as_ptr()).to_string_lossy().into_owned();
                // Names of what was compiled, not numbers.
                if !name.to_lowercase().contains("hash") {
                    report.statistics.insert(name, value);
                }
            }
            let info_of = vk::PipelineInfoKHR::default().pipeline(pipeline);
            let properties = executables.get_pipeline_executable_properties(&info_of);
            let subgroup = properties.expect("properties")[0].subgroup_size;
            report.allowed = allowed(&report, invocations, subgroup);
            let texts = representations(&executables, &info);
            report.inner_loop = texts.iter().find_map(|text| assembly::inner_loop(text));
            if let Ok(folder) = std::env::var("SEMASK_GPU_ISA_TEXT") {
                let path = format!("{folder}/{driver}.{}.txt", name(program));
                std::fs::create_dir_all(&folder).expect("the folder can be made");
                std::fs::write(path, texts.join("\n")).expect("the folder can be written");
            }
            (name(program), report)
        };
        programs.iter().map(compile).collect()
    }
}

/// Subgroups that a SIMD of AMD's takes, as far as shared memory goes: `radv_get_max_waves` of Mesa.
fn allowed(report: &Report, invocations: u32, subgroup: u32) -> Option<f64> {
    const SHARED: f64 = 131_072.0;
    let used = *report.statistics.get("LDS size")?;
    let groups = if used > 0.0 { (SHARED / used).floor() } else { f64::INFINITY };
    let subgroups = groups * f64::from(invocations.div_ceil(subgroup)) / 2.0;
    Some(subgroups.ceil().min(f64::from(subgroup / 2)))
}

/// The texts that a pipeline went through, the last first.
#[allow(unsafe_code, reason = "as in `all`")]
fn representations(
    executables: &khr::pipeline_executable_properties::Device,
    info: &vk::PipelineExecutableInfoKHR<'_>,
) -> Vec<String> {
    // SAFETY: as in `all`; the buffers are as large as the driver has said that its texts are.
    unsafe {
        let sized = executables.get_pipeline_executable_internal_representations(info);
        let mut sized = sized.expect("representations");
        let mut texts: Vec<Vec<u8>> = sized.iter().map(|r| vec![0; r.data_size]).collect();
        for (representation, text) in sized.iter_mut().zip(&mut texts) {
            representation.p_data = text.as_mut_ptr().cast();
        }
        let mut count = sized.len() as u32;
        let filled = (executables.fp().get_pipeline_executable_internal_representations_khr)(
            executables.device(),
            info,
            &mut count,
            sized.as_mut_ptr(),
        );
        assert_eq!(filled, vk::Result::SUCCESS);
        texts.iter().rev().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }
}
