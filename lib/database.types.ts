export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[];

export type Database = {
  ops: {
    Tables: {
      project_memberships: {
        Row: {
          created_at: string;
          given_by: string | null;
          id: string;
          project_id: string;
          role: string;
          updated_at: string;
          user_id: string;
        };
        ComputedFields: never;
        Insert: {
          created_at?: string;
          given_by?: string | null;
          id?: string;
          project_id: string;
          role: string;
          updated_at?: string;
          user_id: string;
        };
        Update: {
          created_at?: string;
          given_by?: string | null;
          id?: string;
          project_id?: string;
          role?: string;
          updated_at?: string;
          user_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "project_memberships_project_id_fkey";
            columns: ["project_id"];
            isOneToOne: false;
            referencedRelation: "projects";
            referencedColumns: ["id"];
          },
        ];
      };
      projects: {
        Row: {
          config: NonNullable<Json>;
          created_at: string;
          description: string | null;
          id: string;
          name: string;
          odoo_version: string;
          slug: string;
          status: string;
          updated_at: string;
          workspace_key: string;
        };
        ComputedFields: never;
        Insert: {
          config?: NonNullable<Json>;
          created_at?: string;
          description?: string | null;
          id?: string;
          name: string;
          odoo_version: string;
          slug: string;
          status?: string;
          updated_at?: string;
          workspace_key: string;
        };
        Update: {
          config?: NonNullable<Json>;
          created_at?: string;
          description?: string | null;
          id?: string;
          name?: string;
          odoo_version?: string;
          slug?: string;
          status?: string;
          updated_at?: string;
          workspace_key?: string;
        };
        Relationships: [];
      };
      run_artifacts: {
        Row: {
          artifact_key: string;
          artifact_url: string;
          checksum: string | null;
          content_type: string | null;
          created_at: string;
          expires_at: string | null;
          id: string;
          metadata: NonNullable<Json>;
          project_id: string;
          run_id: string;
          size_bytes: number | null;
        };
        ComputedFields: never;
        Insert: {
          artifact_key: string;
          artifact_url: string;
          checksum?: string | null;
          content_type?: string | null;
          created_at?: string;
          expires_at?: string | null;
          id?: string;
          metadata?: NonNullable<Json>;
          project_id: string;
          run_id: string;
          size_bytes?: number | null;
        };
        Update: {
          artifact_key?: string;
          artifact_url?: string;
          checksum?: string | null;
          content_type?: string | null;
          created_at?: string;
          expires_at?: string | null;
          id?: string;
          metadata?: NonNullable<Json>;
          project_id?: string;
          run_id?: string;
          size_bytes?: number | null;
        };
        Relationships: [
          {
            foreignKeyName: "run_artifacts_run_id_fkey";
            columns: ["run_id"];
            isOneToOne: false;
            referencedRelation: "runs";
            referencedColumns: ["id"];
          },
        ];
      };
      run_events: {
        Row: {
          created_at: string;
          event_type: string;
          id: string;
          message: string;
          payload: NonNullable<Json>;
          project_id: string;
          run_id: string;
          seq: number;
        };
        ComputedFields: never;
        Insert: {
          created_at?: string;
          event_type: string;
          id?: string;
          message: string;
          payload?: NonNullable<Json>;
          project_id: string;
          run_id: string;
          seq?: never;
        };
        Update: {
          created_at?: string;
          event_type?: string;
          id?: string;
          message?: string;
          payload?: NonNullable<Json>;
          project_id?: string;
          run_id?: string;
          seq?: never;
        };
        Relationships: [
          {
            foreignKeyName: "run_events_run_id_fkey";
            columns: ["run_id"];
            isOneToOne: false;
            referencedRelation: "runs";
            referencedColumns: ["id"];
          },
        ];
      };
      run_logs: {
        Row: {
          created_at: string;
          log_level: string;
          message: string;
          metadata: NonNullable<Json>;
          project_id: string;
          run_id: string;
          seq: number;
          stream: string | null;
          timestamp: string;
          runs: {
            approval: string | null;
            attempt: number;
            cancel_requested_at: string | null;
            claim_count: number;
            claimed_at: string | null;
            claimed_by: string | null;
            claimed_instance: string | null;
            concurrency_key: string | null;
            container_id: string | null;
            created_at: string;
            created_by: string | null;
            error_message: string | null;
            errors: number;
            exit_code: number | null;
            finished_at: string | null;
            id: string;
            idempotency_key: string | null;
            labels: string[];
            metadata: NonNullable<Json>;
            parent_run_id: string | null;
            priority: number;
            project_id: string;
            ready_at: string | null;
            reason: string | null;
            retry_of: string | null;
            run_number: number;
            scheduled_at: string | null;
            started_at: string | null;
            status: string;
            tests: Json | null;
            updated_at: string;
            url: string | null;
            wanted_until: string | null;
            warnings: number;
            workflow_id: string;
          } | null;
        };
        ComputedFields: "runs";
        Insert: {
          created_at?: string;
          log_level: string;
          message: string;
          metadata?: NonNullable<Json>;
          project_id: string;
          run_id: string;
          seq?: number;
          stream?: string | null;
          timestamp?: string;
        };
        Update: {
          created_at?: string;
          log_level?: string;
          message?: string;
          metadata?: NonNullable<Json>;
          project_id?: string;
          run_id?: string;
          seq?: number;
          stream?: string | null;
          timestamp?: string;
        };
        Relationships: [];
      };
      runs: {
        Row: {
          approval: string | null;
          attempt: number;
          cancel_requested_at: string | null;
          claim_count: number;
          claimed_at: string | null;
          claimed_by: string | null;
          claimed_instance: string | null;
          concurrency_key: string | null;
          container_id: string | null;
          created_at: string;
          created_by: string | null;
          error_message: string | null;
          errors: number;
          exit_code: number | null;
          finished_at: string | null;
          id: string;
          idempotency_key: string | null;
          labels: string[];
          metadata: NonNullable<Json>;
          parent_run_id: string | null;
          priority: number;
          project_id: string;
          ready_at: string | null;
          reason: string | null;
          retry_of: string | null;
          run_number: number;
          scheduled_at: string | null;
          started_at: string | null;
          status: string;
          tests: Json | null;
          updated_at: string;
          url: string | null;
          wanted_until: string | null;
          warnings: number;
          workflow_id: string;
          run_logs: {
            created_at: string;
            log_level: string;
            message: string;
            metadata: NonNullable<Json>;
            project_id: string;
            run_id: string;
            seq: number;
            stream: string | null;
            timestamp: string;
          } | null;
        };
        ComputedFields: "run_logs";
        Insert: {
          approval?: string | null;
          attempt?: number;
          cancel_requested_at?: string | null;
          claim_count?: number;
          claimed_at?: string | null;
          claimed_by?: string | null;
          claimed_instance?: string | null;
          concurrency_key?: string | null;
          container_id?: string | null;
          created_at?: string;
          created_by?: string | null;
          error_message?: string | null;
          errors?: number;
          exit_code?: number | null;
          finished_at?: string | null;
          id?: string;
          idempotency_key?: string | null;
          labels?: string[];
          metadata?: NonNullable<Json>;
          parent_run_id?: string | null;
          priority?: number;
          project_id: string;
          ready_at?: string | null;
          reason?: string | null;
          retry_of?: string | null;
          run_number: number;
          scheduled_at?: string | null;
          started_at?: string | null;
          status?: string;
          tests?: Json | null;
          updated_at?: string;
          url?: string | null;
          wanted_until?: string | null;
          warnings?: number;
          workflow_id: string;
        };
        Update: {
          approval?: string | null;
          attempt?: number;
          cancel_requested_at?: string | null;
          claim_count?: number;
          claimed_at?: string | null;
          claimed_by?: string | null;
          claimed_instance?: string | null;
          concurrency_key?: string | null;
          container_id?: string | null;
          created_at?: string;
          created_by?: string | null;
          error_message?: string | null;
          errors?: number;
          exit_code?: number | null;
          finished_at?: string | null;
          id?: string;
          idempotency_key?: string | null;
          labels?: string[];
          metadata?: NonNullable<Json>;
          parent_run_id?: string | null;
          priority?: number;
          project_id?: string;
          ready_at?: string | null;
          reason?: string | null;
          retry_of?: string | null;
          run_number?: number;
          scheduled_at?: string | null;
          started_at?: string | null;
          status?: string;
          tests?: Json | null;
          updated_at?: string;
          url?: string | null;
          wanted_until?: string | null;
          warnings?: number;
          workflow_id?: string;
        };
        Relationships: [
          {
            foreignKeyName: "runs_parent_run_id_fkey";
            columns: ["parent_run_id"];
            isOneToOne: false;
            referencedRelation: "runs";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "runs_project_id_fkey";
            columns: ["project_id"];
            isOneToOne: false;
            referencedRelation: "projects";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "runs_retry_of_fkey";
            columns: ["retry_of"];
            isOneToOne: false;
            referencedRelation: "runs";
            referencedColumns: ["id"];
          },
          {
            foreignKeyName: "runs_workflow_of_project_fkey";
            columns: ["project_id", "workflow_id"];
            isOneToOne: false;
            referencedRelation: "workflows";
            referencedColumns: ["project_id", "id"];
          },
        ];
      };
      tools: {
        Row: {
          config: NonNullable<Json>;
          created_at: string;
          docker_image: string;
          id: string;
          tool_name: string;
          updated_at: string;
          version: string;
        };
        ComputedFields: never;
        Insert: {
          config?: NonNullable<Json>;
          created_at?: string;
          docker_image: string;
          id?: string;
          tool_name: string;
          updated_at?: string;
          version: string;
        };
        Update: {
          config?: NonNullable<Json>;
          created_at?: string;
          docker_image?: string;
          id?: string;
          tool_name?: string;
          updated_at?: string;
          version?: string;
        };
        Relationships: [];
      };
      upgrade_advisories: {
        Row: {
          affects_modules: string[];
          created_at: string;
          description: string | null;
          from_version: string;
          id: string;
          migration_guide: string | null;
          severity: string;
          title: string;
          to_version: string;
          updated_at: string;
        };
        ComputedFields: never;
        Insert: {
          affects_modules?: string[];
          created_at?: string;
          description?: string | null;
          from_version: string;
          id?: string;
          migration_guide?: string | null;
          severity: string;
          title: string;
          to_version: string;
          updated_at?: string;
        };
        Update: {
          affects_modules?: string[];
          created_at?: string;
          description?: string | null;
          from_version?: string;
          id?: string;
          migration_guide?: string | null;
          severity?: string;
          title?: string;
          to_version?: string;
          updated_at?: string;
        };
        Relationships: [];
      };
      workflows: {
        Row: {
          config: NonNullable<Json>;
          created_at: string;
          description: string | null;
          enabled: boolean;
          git_commit: string | null;
          git_ref: string | null;
          id: string;
          name: string;
          project_id: string;
          updated_at: string;
          workflow_type: string;
        };
        ComputedFields: never;
        Insert: {
          config?: NonNullable<Json>;
          created_at?: string;
          description?: string | null;
          enabled?: boolean;
          git_commit?: string | null;
          git_ref?: string | null;
          id?: string;
          name: string;
          project_id: string;
          updated_at?: string;
          workflow_type: string;
        };
        Update: {
          config?: NonNullable<Json>;
          created_at?: string;
          description?: string | null;
          enabled?: boolean;
          git_commit?: string | null;
          git_ref?: string | null;
          id?: string;
          name?: string;
          project_id?: string;
          updated_at?: string;
          workflow_type?: string;
        };
        Relationships: [
          {
            foreignKeyName: "workflows_project_id_fkey";
            columns: ["project_id"];
            isOneToOne: false;
            referencedRelation: "projects";
            referencedColumns: ["id"];
          },
        ];
      };
    };
    Views: {
      [_ in never]: never;
    };
    Functions: {
      add_run_artifact: {
        Args: {
          p_artifact_key: string;
          p_artifact_url: string;
          p_checksum?: string;
          p_content_type?: string;
          p_expires_at?: string;
          p_instance_id?: string;
          p_metadata?: Json;
          p_run_id: string;
          p_size_bytes?: number;
          p_worker_id?: string;
        };
        Returns: Json;
      };
      add_run_event: {
        Args: {
          p_event_type: string;
          p_instance_id?: string;
          p_message: string;
          p_payload?: Json;
          p_run_id: string;
          p_worker_id?: string;
        };
        Returns: Json;
      };
      adopt_run: {
        Args: {
          p_engine_id: string;
          p_instance_id: string;
          p_lease_seconds?: number;
          p_run_id: string;
          p_worker_id: string;
        };
        Returns: Json;
      };
      adoptable_runs: { Args: { p_engine_id: string; p_instance_id: string; p_worker_id: string }; Returns: Json };
      append_run_log: {
        Args: {
          p_instance_id?: string;
          p_level: string;
          p_message: string;
          p_metadata?: Json;
          p_run_id: string;
          p_worker_id?: string;
        };
        Returns: Json;
      };
      append_run_logs: {
        Args: {
          p_first_seq: number;
          p_instance_id: string;
          p_marks: string;
          p_messages: string;
          p_run_id: string;
          p_timestamps: string[];
          p_words?: string;
          p_worker_id: string;
        };
        Returns: Json;
      };
      applicable_advisories: {
        Args: { p_from: string; p_to: string };
        Returns: {
          affects_modules: string[];
          created_at: string;
          description: string | null;
          from_version: string;
          id: string;
          migration_guide: string | null;
          severity: string;
          title: string;
          to_version: string;
          updated_at: string;
        }[];
        SetofOptions: {
          from: "*";
          to: "upgrade_advisories";
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      approve_run: { Args: { p_run_id: string }; Returns: Json };
      cancel_run: { Args: { p_reason?: string; p_run_id: string }; Returns: Json };
      claim_next_run: {
        Args: {
          p_engine_id?: string;
          p_instance_id?: string;
          p_labels?: string[];
          p_lease_seconds?: number;
          p_worker_id: string;
        };
        Returns: Json;
      };
      complete_workflow_run: {
        Args: {
          p_details?: Json;
          p_error_message?: string;
          p_exit_code: number;
          p_instance_id?: string;
          p_reason?: string;
          p_run_id: string;
          p_worker_id?: string;
        };
        Returns: Json;
      };
      current_user_id: { Args: Record<PropertyKey, never>; Returns: string };
      current_user_role: { Args: { p_project_id: string }; Returns: string };
      drain_worker: { Args: { p_drain?: boolean; p_reason?: string; p_worker_id: string }; Returns: Json };
      enqueue_run: {
        Args: { p_idempotency_key?: string; p_metadata?: Json; p_scheduled_at?: string; p_workflow_id: string };
        Returns: Json;
      };
      find_user: { Args: { p_email: string }; Returns: Json };
      health: { Args: Record<PropertyKey, never>; Returns: Json };
      heartbeat: {
        Args: {
          p_disk_free?: number;
          p_disk_total?: number;
          p_instance_id: string;
          p_lease_seconds?: number;
          p_worker_id: string;
        };
        Returns: Json;
      };
      limit_project: {
        Args: { p_max_active_runs?: number; p_max_queued_runs?: number; p_project_id: string };
        Returns: Json;
      };
      list_queued_runs: {
        Args: { p_limit?: number };
        Returns: {
          claimed_at: string;
          claimed_by: string;
          created_at: string;
          project_id: string;
          run_id: string;
          run_number: number;
          status: string;
          waits_for: string;
          workflow_id: string;
        }[];
      };
      mark_known: {
        Args: { p_fingerprint?: string; p_known?: boolean; p_note?: string; p_run_id: string };
        Returns: Json;
      };
      mark_ready: {
        Args: { p_instance_id: string; p_run_id: string; p_url: string; p_worker_id: string };
        Returns: Json;
      };
      pause_project: { Args: { p_project_id: string; p_reason?: string }; Returns: Json };
      pause_queue: { Args: { p_reason?: string }; Returns: Json };
      project_overview: {
        Args: Record<PropertyKey, never>;
        Returns: {
          active_runs: number;
          max_active_runs: number;
          max_queued_runs: number;
          name: string;
          odoo_version: string;
          pause_reason: string;
          paused_at: string;
          paused_by: string;
          project_id: string;
          queued_runs: number;
          role: string;
          slug: string;
          status: string;
        }[];
      };
      reap: { Args: Record<PropertyKey, never>; Returns: Json };
      receive_push: { Args: { p_body: string; p_headers: Json; p_project_id: string }; Returns: Json };
      receive_webhook: { Args: { "": Json }; Returns: Json };
      record_container: {
        Args: {
          p_container_id: string;
          p_details?: Json;
          p_instance_id: string;
          p_run_id: string;
          p_worker_id: string;
        };
        Returns: Json;
      };
      record_report: {
        Args: { p_instance_id: string; p_run_id: string; p_summary?: string; p_tests?: Json; p_worker_id: string };
        Returns: Json;
      };
      register_destinations: { Args: { p_destinations: Json; p_worker_id: string }; Returns: Json };
      register_worker: {
        Args: {
          p_engine_id?: string;
          p_host_id?: string;
          p_instance_id: string;
          p_labels?: string[];
          p_lease_seconds?: number;
          p_takeover?: boolean;
          p_version?: string;
          p_worker_id: string;
        };
        Returns: Json;
      };
      reject_run: { Args: { p_reason?: string; p_run_id: string }; Returns: Json };
      release_run: { Args: { p_instance_id: string; p_run_id: string; p_worker_id: string }; Returns: Json };
      remove_member: { Args: { p_project_id: string; p_user_id: string }; Returns: Json };
      resume_project: { Args: { p_project_id: string }; Returns: Json };
      resume_queue: { Args: Record<PropertyKey, never>; Returns: Json };
      retry_run: { Args: { p_run_id: string }; Returns: Json };
      run_fingerprints: {
        Args: { p_run_id: string };
        Returns: {
          fingerprint: string;
          first_at: string;
          first_run: string;
          first_run_id: string;
          kind: string;
          line: string;
          marked_at: string;
          marked_by: string;
          message: string;
          note: string;
          projects: number;
          times: number;
        }[];
      };
      run_logs: {
        Args: {
          p_run: Omit<Database["ops"]["Tables"]["runs"]["Row"], Database["ops"]["Tables"]["runs"]["ComputedFields"]>;
        };
        Returns: {
          created_at: string;
          log_level: string;
          message: string;
          metadata: NonNullable<Json>;
          project_id: string;
          run_id: string;
          seq: number;
          stream: string | null;
          timestamp: string;
        }[];
        SetofOptions: {
          from: "ops.runs";
          to: "run_logs";
          isOneToOne: false;
          isSetofReturn: true;
        };
      };
      run_summary: { Args: { p_run_id: string }; Returns: string };
      runs: {
        Args: {
          p_line: Omit<
            Database["ops"]["Tables"]["run_logs"]["Row"],
            Database["ops"]["Tables"]["run_logs"]["ComputedFields"]
          >;
        };
        Returns: {
          approval: string | null;
          attempt: number;
          cancel_requested_at: string | null;
          claim_count: number;
          claimed_at: string | null;
          claimed_by: string | null;
          claimed_instance: string | null;
          concurrency_key: string | null;
          container_id: string | null;
          created_at: string;
          created_by: string | null;
          error_message: string | null;
          errors: number;
          exit_code: number | null;
          finished_at: string | null;
          id: string;
          idempotency_key: string | null;
          labels: string[];
          metadata: NonNullable<Json>;
          parent_run_id: string | null;
          priority: number;
          project_id: string;
          ready_at: string | null;
          reason: string | null;
          retry_of: string | null;
          run_number: number;
          scheduled_at: string | null;
          started_at: string | null;
          status: string;
          tests: Json | null;
          updated_at: string;
          url: string | null;
          wanted_until: string | null;
          warnings: number;
          workflow_id: string;
        };
        SetofOptions: {
          from: "ops.run_logs";
          to: "runs";
          isOneToOne: true;
          isSetofReturn: true;
        };
      };
      search_run_logs: {
        Args: {
          p_before?: string;
          p_before_run_id?: string;
          p_before_seq?: number;
          p_limit?: number;
          p_project_id?: string;
          p_query: string;
          p_run_id?: string;
        };
        Returns: {
          log_level: string;
          message: string;
          run_id: string;
          run_number: number;
          seq: number;
          timestamp: string;
        }[];
      };
      set_member: { Args: { p_project_id: string; p_role: string; p_user_id: string }; Returns: Json };
      set_webhook_secret: { Args: { p_project_id: string; p_secret?: string }; Returns: Json };
      settle_delivery: {
        Args: { p_delivery_id: string; p_error?: string; p_final?: boolean; p_instance_id: string };
        Returns: Json;
      };
      shut_out_worker: { Args: { p_name: string }; Returns: Json };
      start_workflow_run: { Args: { p_instance_id?: string; p_run_id: string; p_worker_id: string }; Returns: Json };
      sync_project: { Args: { p_dry_run?: boolean; p_project: Json }; Returns: Json };
      sync_tools: { Args: { p_dry_run?: boolean; p_tools: Json }; Returns: Json };
      take_deliveries: {
        Args: { p_destinations: string[]; p_instance_id: string; p_worker_id: string };
        Returns: Json;
      };
      unclaimable_runs: { Args: { p_labels?: string[] }; Returns: Json };
      unregister_worker: { Args: { p_instance_id: string; p_worker_id: string }; Returns: Json };
      worker_overview: {
        Args: Record<PropertyKey, never>;
        Returns: {
          alive: boolean;
          db_role: string;
          disk_free: number;
          disk_total: number;
          drain_reason: string;
          drained_at: string;
          drained_by: string;
          expires_at: string;
          labels: string[];
          runs: Json;
          started_at: string;
          version: string;
          worker_id: string;
        }[];
      };
      workflow_overview: {
        Args: Record<PropertyKey, never>;
        Returns: {
          next_at: string;
          project_id: string;
          schedule_problem: string;
          workflow_id: string;
        }[];
      };
    };
    Enums: {
      [_ in never]: never;
    };
    CompositeTypes: {
      [_ in never]: never;
    };
  };
};

type DatabaseWithoutInternals = Omit<Database, "__InternalSupabase">;

type DefaultSchema = DatabaseWithoutInternals[Extract<keyof Database, "ops">];

export type Tables<
  DefaultSchemaTableNameOrOptions extends
    | keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends (DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"] &
        DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"])
    : never) = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"] &
      DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Views"])[TableName] extends {
      Row: infer R;
    }
    ? R
    : never
  : DefaultSchemaTableNameOrOptions extends keyof (DefaultSchema["Tables"] & DefaultSchema["Views"])
    ? (DefaultSchema["Tables"] & DefaultSchema["Views"])[DefaultSchemaTableNameOrOptions] extends {
        Row: infer R;
      }
      ? R
      : never
    : never;

export type TablesInsert<
  DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"] | { schema: keyof DatabaseWithoutInternals },
  TableName extends (DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never) = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends {
      Insert: infer I;
    }
    ? I
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
    ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
        Insert: infer I;
      }
      ? I
      : never
    : never;

export type TablesUpdate<
  DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"] | { schema: keyof DatabaseWithoutInternals },
  TableName extends (DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"]
    : never) = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions["schema"]]["Tables"][TableName] extends {
      Update: infer U;
    }
    ? U
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema["Tables"]
    ? DefaultSchema["Tables"][DefaultSchemaTableNameOrOptions] extends {
        Update: infer U;
      }
      ? U
      : never
    : never;

export type Enums<
  DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema["Enums"] | { schema: keyof DatabaseWithoutInternals },
  EnumName extends (DefaultSchemaEnumNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"]
    : never) = never,
> = DefaultSchemaEnumNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions["schema"]]["Enums"][EnumName]
  : DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema["Enums"]
    ? DefaultSchema["Enums"][DefaultSchemaEnumNameOrOptions]
    : never;

export type CompositeTypes<
  PublicCompositeTypeNameOrOptions extends
    | keyof DefaultSchema["CompositeTypes"]
    | { schema: keyof DatabaseWithoutInternals },
  CompositeTypeName extends (PublicCompositeTypeNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals;
  }
    ? keyof DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"]
    : never) = never,
> = PublicCompositeTypeNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions["schema"]]["CompositeTypes"][CompositeTypeName]
  : PublicCompositeTypeNameOrOptions extends keyof DefaultSchema["CompositeTypes"]
    ? DefaultSchema["CompositeTypes"][PublicCompositeTypeNameOrOptions]
    : never;

export const Constants = {
  ops: {
    Enums: {},
  },
} as const;
