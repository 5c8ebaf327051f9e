"""The faults: each was seen in some training loop, and each breaks a law that users rely on."""

from __future__ import annotations

from typing import NamedTuple

RESUME = ("tests/laws/test_resume.py", "tests/laws/test_user_errors.py")
LAWS = ("tests/laws",)
ASYNC = ("tests/unit/test_async_save.py",)


class Fault(NamedTuple):
    """A replacement of text in one file, and the tests that must notice it."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...] = RESUME


LOAD = "        return (self._shards or self._store).load(chosen, fresh, free=OUTPUT_ONLY)\n"


def loaded(changes: str) -> str:
    return LOAD.replace("return", "state =") + f"        return state.replace({changes})\n"


SHARDED = ("tests/world/test_sharded.py",)
POWER = ("tests/crash/test_power_loss.py",)
FOLDER = "helios_fn/driver/folder.py"
LEFTOVERS = "helios_fn/checkpoint/leftovers.py"
STORE = "helios_fn/checkpoint/store.py"
LOOP = "helios_fn/driver/loop.py"
SCHEDULE = "helios_fn/schedule.py"
WRITER = "helios_fn/checkpoint/writer.py"

FAULTS = [
    Fault(
        "epoch_off_by_one_on_resume", FOLDER, LOAD,
        loaded("cursor=state.cursor._replace(epoch=max(0, state.cursor.epoch - 1))"),
    ),
    Fault("position_in_the_epoch_lost_on_resume", FOLDER, LOAD, loaded("cursor=state.cursor._replace(batch=0)")),
    Fault(
        "phase_lost_on_resume", FOLDER, LOAD, loaded("cursor=state.cursor._replace(phase=0)"),
    ),
    Fault(
        "offset_kept_for_later_epochs", SCHEDULE,
        "        cursor = assignment.cursor\n",
        "        offset = cursor.batch if assignment.cursor.batch == 0 else 0\n"
        "        cursor = assignment.cursor._replace(batch=assignment.cursor.batch + offset)\n",
        LAWS,
    ),
    Fault(
        "cursor_not_normalised_at_the_last_batch", SCHEDULE,
        "    epochs, batch = divmod(cursor.batch + count, batches_per_epoch)\n",
        "    epochs, batch = divmod(cursor.batch + count - 1, batches_per_epoch)\n    batch += 1\n",
        LAWS,
    ),
    Fault(
        "stopped_epoch_counts_as_complete", FOLDER, LOAD,
        loaded("cursor=state.cursor._replace(epoch=state.cursor.epoch + (state.cursor.batch > 0), batch=0)"),
    ),
    Fault(
        "loader_seeds_once_instead_of_per_sample", "helios_fn/data/sampling.py",
        "                if self._seeds_samples:\n",
        "                if self._seeds_samples and not self.__dict__.setdefault('_seeded', 0):\n"
        "                    self._seeded = 1\n",
    ),
    Fault(
        "worker_seed_depends_on_the_worker", "helios_fn/data/sampling.py",
        "                    random.seed_globals(row)\n",
        "                    info = get_worker_info()\n"
        "                    random.seed_globals(row if info is None else [w ^ (info.id + 1) for w in row])\n",
    ),
    Fault(
        "validation_advances_the_training_key", LOOP,
        "        self.state = self.state.replace(validation=found)\n",
        '        key = random.fold_in(self.state.key, "next")\n'
        "        self.state = self.state.replace(validation=found, key=key)\n",
        ("tests/laws/test_observation.py",),
    ),
    Fault(
        "validation_draws_from_the_ambient_generator",
        LOOP,
        '        with random.scope(random.fold_in(self.state.key, "validation", self.state.counters.iteration)):\n',
        "        if True:\n",
    ),
    Fault(
        "noise_does_not_depend_on_the_position", "helios_fn/state.py",
        '    return consecutive(state.key, "micro", first, 1)\n',
        '    return consecutive(state.key, "micro", 0, 1)\n',
        ("tests/unit/test_state.py", "tests/laws"),
    ),
    Fault(
        "partial_accumulation_dropped_on_resume", FOLDER, LOAD,
        "        state = self._store.load(chosen, fresh, free=OUTPUT_ONLY)\n"
        "        pending = hasattr(state.opt_state, 'pending')\n"
        "        empty = {n: getattr(fresh.opt_state, n) for n in ('pending', 'weight', 'calls')} if pending else {}\n"
        "        return state.replace(opt_state=state.opt_state._replace(**empty)) if empty else state\n",
    ),
    Fault(
        "only_the_last_micro_batch_counts", "helios_fn/optim/_every.py",
        "    accumulate.add_(acc, terms)\n    return acc\n",
        "    return terms\n",
        ("tests/laws/test_accumulation.py",),
    ),
    Fault(
        "ragged_micro_batches_weigh_the_same", "helios_fn/nn/microsteps.py",
        "read_weight(aux.weight, index))",
        "read_weight(1, index))",
        ("tests/laws/test_accumulation.py",),
    ),
    Fault(
        "schedule_count_not_restored", "helios_fn/optim/native.py",
        "        lr = rate_at(rule.lr, count)\n",
        "        _Native.calls = getattr(_Native, 'calls', -1) + 1\n        lr = rate_at(rule.lr, _Native.calls)\n",
    ),
    Fault(
        "optimizer_memory_not_restored", FOLDER, LOAD, loaded("opt_state=fresh.opt_state"),
    ),
    Fault(
        "buffers_mutated_in_place", "helios_fn/nn/skeleton.py",
        "        return [tensor.clone() for tensor in tensors]\n",
        "        return list(tensors)\n",
        ("tests/laws/test_purity.py",),
    ),
    Fault(
        "overflow_is_taken_for_a_fault", "helios_fn/step.py",
        "all_finite([mean.loss]) & scaled",
        "all_finite([mean.loss, *tree.leaves(mean.grads)]) & scaled",
        ("tests/unit/test_loss_scale.py",),
    ),
    Fault(
        "overflow_leaves_the_growth_of_the_scale", "helios_fn/optim/_loss_scale.py",
        "torch.zeros_like(state.growth), state.skipped + 1",
        "state.growth, state.skipped + 1",
        ("tests/unit/test_loss_scale.py",),
    ),
    Fault(
        "average_counts_its_own_calls", "helios_fn/nn/averages.py",
        "        share = weight(count)\n",
        "        weight.calls = getattr(weight, 'calls', 0) + 1\n        share = weight(weight.calls)\n",
    ),
    Fault("average_not_saved", FOLDER, LOAD, loaded("averages=fresh.averages")),
    Fault("user_state_not_saved", FOLDER, LOAD, loaded("extra=fresh.extra")),
    Fault(
        "best_metric_not_saved", FOLDER, LOAD,
        loaded("validation=state.validation._replace(best=fresh.validation.best)"),
    ),
    Fault(
        "early_stop_counter_not_saved", FOLDER, LOAD, loaded("validation=state.validation._replace(bad_cycles=0)"),
    ),
    Fault(
        "log_rows_duplicated_on_resume", "helios_fn/sinks/_append.py",
        "            file.truncate(size)\n",
        "",
    ),
    Fault(
        "log_rows_missing_after_resume", FOLDER,
        '        return Start(state, _fact(chosen, "sinks"), log_dir, superseded, chosen.path)\n',
        "        return Start(state, {}, log_dir, superseded, chosen.path)\n",
    ),
    Fault(
        "shuffle_ignores_the_seed", "helios_fn/data/order.py",
        '    return random.fold_in(key, "order", phase, epoch)\n',
        '    return random.fold_in(random.key(0), "order", phase, epoch)\n',
        ("tests/laws/test_order.py",),
    ),
    Fault(
        "same_order_in_every_epoch", "helios_fn/data/order.py",
        '    return random.fold_in(key, "order", phase, epoch)\n',
        '    return random.fold_in(key, "order", phase, 0)\n',
        ("tests/laws/test_order.py",),
    ),
    Fault(
        "keys_derived_by_adding", "helios_fn/data/order.py",
        '    return random.fold_in(key, "order", phase, epoch)\n',
        "    return key + torch.tensor([phase + epoch, 0])\n",
        ("tests/laws/test_order.py",),
    ),
    Fault(
        "finished_run_trains_one_more_step", LOOP,
        "        reason = self.stop_reason()\n        self.watch.restart(self.state.counters.micro_step)\n",
        "        reason = None\n        self.watch.restart(self.state.counters.micro_step)\n",
        ("tests/laws/test_counting.py",),
    ),
    Fault(
        "checkpoint_written_before_validation",
        LOOP,
        "        if (save or look) and self.heed_first_bad() and save:\n"
        '            self.watch.timed("checkpoint", self.save)\n',
        "        if (save or look) and self.heed_first_bad() and save:\n"
        "            state, self.complete = self.complete, self.complete.replace(validation=before.validation)\n"
        "            self.save()\n"
        "            self.complete = state\n",
    ),
    Fault(
        "half_an_iteration_saved_after_a_failure",
        LOOP,
        '        self.batch, self.doing = None, _REACTING\n',
        '        self.batch, self.doing, self.complete = None, _REACTING, self.state\n',
        ("tests/unit/test_driver_robustness.py",),
    ),
    Fault(
        "the_initial_state_is_overwritten", LOOP,
        "        self.donation.keep(start.state)\n",
        "",
        ("tests/unit/test_donation.py",),
    ),
    Fault(
        "a_state_being_saved_is_overwritten", LOOP,
        "        self.donation.keep(self.complete)\n",
        "",
        ASYNC,
    ),
    Fault(
        "what_a_state_in_flight_shares_is_overwritten", LOOP,
        "again=self.saving.writing",
        "again=False",
        ASYNC,
    ),
    Fault(
        "a_torn_checkpoint_is_committed", "helios_fn/checkpoint/format.py",
        "    check()\n",
        "",
        ASYNC,
    ),
    Fault(
        "a_failed_save_counts", WRITER,
        "            write()\n            self.durable = True\n",
        "            self.durable = True\n            write()\n",
        ASYNC,
    ),
    Fault(
        "states_queue_up_behind_a_slow_disk", WRITER,
        "        self.drain()\n        self._last = save",
        "        self._last = save",
        ASYNC,
    ),
    Fault(
        "the_lock_is_released_before_the_writer_has_left", FOLDER,
        "self._writer.close(self._lock.release)",
        "self._lock.release()",
        ASYNC,
    ),
    Fault(
        "a_failing_save_is_hidden_by_another_failure", "helios_fn/driver/failure.py",
        "        error.add_note(",
        "        str(",
        ASYNC,
    ),
    Fault(
        "what_came_after_a_torn_save_is_saved", "helios_fn/driver/failure.py",
        "        if isinstance(second, PurityError):\n            return second\n",
        "",
        ASYNC,
    ),
    Fault(
        "a_rollback_passes_over_the_save_on_its_way", LOOP,
        "            self.hear()  # it may be the very one to go back to\n",
        "",
        ASYNC,
    ),
    Fault(
        "a_state_that_is_not_finite_is_saved_by_the_clock", LOOP,
        " and not begun and int(self.complete.first_bad) < 0:\n",
        " and not begun:\n",
        ("tests/unit/test_time.py",),
    ),
    Fault(
        "a_launch_without_progress", LOOP,
        "self.state.counters.iteration > self._launched_at and ",
        "",
        ("tests/unit/test_time.py",),
    ),
    Fault(
        "shown_states_are_overwritten", "helios_fn/driver/donation.py",
        '(self._always or (cfg.donate == "auto" and not shown))',
        'cfg.donate in (True, "auto")',
        ("tests/unit/test_donation.py",),
    ),
    Fault(
        "half_an_update_is_saved_after_a_failure", LOOP,
        "                if is_given_away(given):\n",
        "                if False:\n",
        ("tests/unit/test_donation.py",),
    ),
    Fault(
        "a_graph_is_taken_for_another_functions", "helios_fn/graph.py",
        "torch.compile(_with_own_code(fn), ",
        "torch.compile(_with_own_code.__globals__.setdefault('shared', _with_own_code(fn)), ",
        ("tests/unit/test_compile.py",),
    ),
    Fault(
        "a_compiled_step_takes_counters_for_constants", "helios_fn/compiled.py",
        "        given = _with_tensors(given)\n",
        "",
        ("tests/unit/test_compile.py",),
    ),
    Fault(
        "rows_written_before_the_iteration_is_complete",
        "helios_fn/driver/outlets.py",
        "        self._pending.append(row)\n",
        "        for sink in self._sinks:\n            sink.write(row)\n",
    ),
    Fault(
        "last_state_not_saved", "helios_fn/driver/run.py",
        "    if loop.saving.saved_at != loop.complete.counters.iteration and int(loop.complete.first_bad) < 0:\n",
        "    if False:\n",
        ("tests/unit/test_driver.py", "tests/laws/test_counting.py"),
    ),
    Fault(
        "cadence_depends_on_where_the_process_started", SCHEDULE,
        "            following = (_count(at, cadence) // cadence.n + 1) * cadence.n\n",
        "            following = _count(at, cadence) + cadence.n\n",
        LAWS,
    ),
    Fault(
        "a_damaged_checkpoint_counts_as_one_to_keep", "helios_fn/checkpoint/pruning.py",
        "        if flaw is not None:\n",
        "        if False:\n",
        ("tests/unit/test_retention.py",),
    ),
    Fault(
        "files_deleted_before_their_new_name_is_durable", "helios_fn/checkpoint/pruning.py",
        "    if names:\n        files.sync_folder(folder)  # or",
        "    if False:\n        files.sync_folder(folder)  # or",
        ("tests/unit/test_retention.py",),
    ),
    Fault(
        "the_best_is_a_later_checkpoint_that_repeats_its_metrics", "helios_fn/checkpoint/retention.py",
        "            first.setdefault((entry.cycle, value), entry)\n",
        "            first[entry.cycle, value] = entry\n",
        ("tests/unit/test_retention.py",),
    ),
    Fault(
        "skipped_update_still_moves_the_optimizer", "helios_fn/finite.py",
        "    return state.replace(metrics=stepped.metrics)\n",
        "    return state.replace(metrics=stepped.metrics, opt_state=stepped.opt_state)\n",
        ("tests/unit/test_driver.py",),
    ),
    Fault(
        "recovered_checkpoint_stays_in_memory", LEFTOVERS,
        "        sync_files(files, unfinished)\n",
        "",
        POWER,
    ),
    Fault(
        "old_checkpoint_moved_before_the_new_one_has_a_durable_name", STORE,
        "            self._files.sync_folder(self.folder)  # the new one",
        "            # the new one",
        POWER,
    ),
    Fault(
        "names_found_by_the_next_process_are_not_durable", LEFTOVERS,
        "            _recover(files, folder, name)\n    files.sync_folder(folder)\n",
        "            _recover(files, folder, name)\n",
        POWER,
    ),
    Fault(
        "folder_of_a_killed_start_is_not_durable", "helios_fn/checkpoint/files.py",
        "        try:\n            files.sync_folder(path.parent)\n",
        "        try:\n            pass\n",
        POWER,
    ),
    Fault(
        "log_folder_named_by_whoever_wrote_the_checkpoint", FOLDER,
        "or not _LOG_DIR.fullmatch(name):",
        "or Path(name).name != name:",
        ("tests/crash/test_hostile_record.py",),
    ),
    Fault(
        "keys_are_lent_after_somebody_wrote_to_one", "helios_fn/random/keys.py",
        " or self.keys[0]._version != self._version:",
        ":",
        ("tests/unit/test_random_keys.py",),
    ),
    Fault(
        "draws_that_no_key_decides_get_into_a_compiled_step", "helios_fn/random/compiled.py",
        "        if image(generator) == before:\n            return result\n", "        return result\n",
        ("tests/unit/test_random_compiled.py",),
    ),
    Fault(
        "logged_learning_rate_is_that_of_the_first_step", "helios_fn/scalars.py",
        "known == value != 0 and made._version == 0",
        "known != 0 and made._version == 0",
        ("tests/unit/test_step.py",),
    ),
    Fault(
        "sharded_gradients_not_weighted", "helios_fn/nn/shards.py",
        "    if index is not None:\n", "    if index is not None and index < 0:\n",
        SHARDED,
    ),
    Fault(
        "norm_of_one_processes_shards", "helios_fn/optim/clip.py",
        "everywhere + over_ranks(mesh_of(leaves), here.view(1)).sum()", "everywhere + here.sum()",
        SHARDED,
    ),
    Fault(
        "replicated_leaves_counted_by_each_process", "helios_fn/dtensors.py",
        "    return not is_sharded(leaf) or all(placement.is_replicate() for placement in leaf.placements)\n",
        "    return not is_sharded(leaf)\n",
        SHARDED,
    ),
    Fault(
        "finite_in_one_process", "helios_fn/finiteness.py",
        "    everybody = over_ranks(mesh_of(leaves), mine.view(1)).bool().all()\n", "    everybody = mine.bool()\n",
        SHARDED,
    ),
    Fault(
        "gathering_without_an_anchor", "helios_fn/distributed/gradients.py",
        "        if anchor.requires_grad:\n", "        if anchor.requires_grad and not leaves:\n",
        SHARDED,
    ),
    Fault(
        "shards_summed_from_left_to_right", "helios_fn/distributed/gathering.py",
        "        terms = pairs + terms[2 * len(pairs) :]\n",
        "        terms = [terms[0] + terms[1], *terms[2:]]\n",
        SHARDED,
    ),
    Fault(
        "kept_shards_given_away", "helios_fn/driver/donation.py",
        "    return local(leaf).untyped_storage()", "    return leaf.untyped_storage()",
        SHARDED,
    ),
    Fault(
        "parts_of_others_may_change_while_they_are_saved", "helios_fn/checkpoint/sharded_writer.py",
        "        self._written()\n", "",
        ("tests/world/test_sharded_checkpoints.py",),
    ),
    Fault(
        "neighbours_are_merged_by_level_alone", "helios_fn/distributed/reduction.py",
        "    return left.size == size and left.start % (2 * size) == 0\n",
        "    return left.size == size\n",
        ("tests/unit/test_distributed_reduction.py",),
    ),
    Fault(
        "share_of_another_process_is_summed", "helios_fn/distributed/exchange.py",
        "    if held != plan[channel.rank]:\n",
        "    if len(held) != len(plan[channel.rank]):\n",
        ("tests/world/test_exchange.py",),
    ),
    Fault(
        "two_processes_with_several_nodes_are_all_reduced", "helios_fn/distributed/exchange.py",
        "[len(nodes) for nodes in plan] == [1, 1]\n",
        "len(plan) == 2 and all(len(nodes) < 2 for nodes in plan[:1])\n",
        ("tests/world/test_exchange.py",),
    ),
    Fault(
        "parts_of_a_scattered_sum_are_added_as_they_come", "helios_fn/distributed/exchange.py",
        "    ((total,),) = combine(_as_blocks(plan, terms), partial.terms, partial.reduction)\n",
        '    ((total,),) = combine(_as_blocks(plan, terms), partial.terms, "fold")\n',
        ("tests/world/test_exchange.py",),
    ),
    Fault(
        "validation_leaves_out_the_last_batch_of_a_slice", "helios_fn/driver/fold.py",
        "        start, stop = rank_slice(count, world.rank, world.size)\n",
        "        start, stop = rank_slice(count, world.rank, world.size)\n"
        "        stop -= world.rank == 1 and stop - start > 1\n",
        ("tests/world/test_law.py",),
    ),
    Fault(
        "totals_of_floats_are_merged_by_each_process", "helios_fn/driver/table.py",
        "        elif is_exact(value.total):\n",
        "        elif form_of(before[0].total) == form:\n",
        ("tests/world/test_evaluation.py",),
    ),
    Fault(
        "validation_that_is_tried_out_is_recorded", "helios_fn/driver/sanity.py",
        "        record_validation(state.validation, metrics, cfg.early_stop, cfg.retention)  # for what it refuses\n",
        "        found = record_validation(state.validation, metrics, cfg.early_stop, cfg.retention)\n"
        "        loop.state = loop.complete = state.replace(validation=found)\n",
        ("tests/unit/test_amounts.py",),
    ),
    Fault(
        "a_total_in_samples_is_rounded_down", "helios_fn/driver/amount.py",
        "    return int(epochs * batches + -(-rest // size))\n",
        "    return int(epochs * batches + rest // size)\n",
        ("tests/unit/test_amounts.py",),
    ),
    Fault(
        "the_branch_of_a_range_test_goes_on_where_the_state_is", "helios_fn/driver/rates.py",
        "        counters=Counters(),\n",
        "",
        ("tests/unit/test_learning_rate.py",),
    ),
    Fault(
        "validation_draws_by_the_place_within_a_slice", "helios_fn/driver/fold.py",
        "random.fold_in(key, number + 1)",
        "random.fold_in(key, number - batches.start + 1)",
        ("tests/world/test_law.py",),
    ),
    Fault(
        "agreement_is_read_one_iteration_late_on_one_rank", "helios_fn/driver/agreement.py",
        "        number, over, self._left_out = self._word.tolist()\n",
        "        number, over, self._left_out = self._word.tolist()\n"
        "        if not self._world.is_main:\n"
        "            number, self._late = getattr(self, '_late', 0), number\n",
        ("tests/world/test_agreement.py",),
    ),
    Fault(
        "each_rank_goes_by_its_own_clock", "helios_fn/driver/agreement.py",
        "        return self._timer.is_over() if self._alone else self._is_over\n",
        "        return self._timer.is_over()\n",
        ("tests/world/test_agreement.py",),
    ),
    Fault(
        "replicas_are_not_compared_after_the_first_iteration", "helios_fn/driver/replicas.py",
        "        return min(regular, self._first) if iteration < self._first else regular\n",
        "        return regular\n",
        ("tests/world/test_agreement.py",),
    ),
    Fault(
        "replicas_are_compared_after_the_save", "helios_fn/driver/loop.py",
        "        self.replicas.compare(self.state)\n        if due.fingerprint",
        "        if due.fingerprint",
        ("tests/world/test_agreement.py",),
    ),
    Fault(
        "every_rank_looks_at_the_folder", "helios_fn/driver/together.py",
        "        by_main(self._world, self._folder.__enter__)\n",
        "        self._folder.__enter__()\n",
        ("tests/world/test_agreement.py",),
    ),
    Fault(
        "each_rank_begins_with_a_fresh_state_of_its_own", "helios_fn/driver/together.py",
        "        return Start(state, {}, _path(log_dir), _path(superseded), None)\n",
        "        fresh = like if state.counters.iteration == 0 else state\n"
        "        return Start(fresh, {}, _path(log_dir), _path(superseded), None)\n",
        ("tests/world/test_agreement.py",),
    ),
    Fault(
        "errors_of_rank_0_lose_their_type", "helios_fn/driver/together.py",
        "_ERRORS.get(kind, RuntimeError)",
        "RuntimeError",
        ("tests/world/test_agreement.py",),
    ),
    Fault(
        "who_leaves_a_run_says_nothing", "helios_fn/driver/run.py",
        '            loop.world.note("left", f"left the run after iteration {loop.complete.counters.iteration}")\n',
        "",
        ("tests/world/test_failures.py",),
    ),
    Fault(
        "a_fingerprint_has_the_batch_of_rank_0_alone", "helios_fn/driver/fingerprints.py",
        "for rank in range(self._world.size)]",
        "for rank in range(1)]",
        ("tests/world/test_forensics.py",),
    ),
    Fault(
        "a_large_tensors_fingerprint_forgets_the_last_columns", "helios_fn/fingerprint.py",
        "    found[: len(tail)] += tail\n",
        "",
        ("tests/unit/test_fingerprint.py",),
    ),
    Fault(
        "a_resumed_branch_loses_its_history", "helios_fn/driver/folder.py",
        "        self._history = history_of(chosen)\n",
        "        self._history = history_of(chosen) if foreign else []\n",
        ("tests/unit/test_branch.py",),
    ),
    Fault(
        "a_branch_with_other_data_goes_on_in_the_middle_of_its_epoch", "helios_fn/driver/descent.py",
        "        state = state.replace(cursor=moved)\n",
        "",
        ("tests/unit/test_branch.py",),
    ),
    Fault(
        "a_counter_is_handed_on_in_memory_that_serves_again", "helios_fn/nn/layout.py",
        "[leaf.clone() for leaf in leaves[ends[-1] :]]", "leaves[ends[-1] :]",
        ("tests/unit/test_distributed_rooms.py",),
    ),
    Fault(
        "gradients_of_another_shape_are_broadcast", "helios_fn/nn/layout.py",
        "            packing.check(leaves)\n", "",
        ("tests/unit/test_nn_microsteps.py",),
    ),
    Fault(
        "a_sum_is_given_back_twice", "helios_fn/distributed/rooms.py",
        "                and not any(term is other for other in self._idle)\n", "",
        ("tests/unit/test_distributed_rooms.py",),
    ),
    Fault(
        "weightless_micro_batches_count_as_one", "helios_fn/distributed/rooms.py",
        "accumulate.scale_(vector, self._weight if bucket.is_floating else self._of_others)",
        "accumulate.scale_(vector, (self._weight or 1) if bucket.is_floating else self._of_others)",
        ("tests/unit/test_nn_microsteps.py",),
    ),
    Fault(
        "the_watch_overlooks_a_waiting_normal", "helios_fn/random/imaged.py",
        "    return _memory(generator._cdata + offset).raw  # type: ignore[attr-defined]\n",
        "    return _memory(generator._cdata + offset).raw[:-24]  # type: ignore[attr-defined]\n",
        ("tests/unit/test_random_imaged.py",),
    ),
    Fault(
        "a_gradient_that_is_not_finite_is_passed_over", "helios_fn/finiteness.py",
        "        if found.item() != 0.0:\n            return False\n", "",
        ("tests/unit/test_finiteness.py",),
    ),
    Fault(
        "a_lent_number_was_written_to", "helios_fn/scalars.py",
        " and made[0]._version == 0:  # all are views", ":  # all are views",
        ("tests/unit/test_scalars.py",),
    ),
]  # fmt: skip
